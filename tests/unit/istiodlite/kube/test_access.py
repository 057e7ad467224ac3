"""Credentials: kubeconfig files, pods' files, and what is said of those that cannot be used."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml

from istiodlite.kube.access import AccessError, in_cluster
from istiodlite.kube.kubeconfig import find_access, load_kubeconfig
from tests.support import pki


def config(path: Path, *, cluster: Any = None, user: Any = None, **more: Any) -> Path:
    value = {
        "current-context": "main",
        "clusters": [{"name": "c", "cluster": {"server": "https://10.0.0.1:6443/", **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "main", "context": {"cluster": "c", "user": "u"}}],
        **more,
    }
    path.write_text(yaml.safe_dump(value))
    return path


def test_files_and_literals_make_a_tls_context_with_a_client_certificate(tmp_path: Path) -> None:
    root = pki.Authority.root()
    leaf = root.leaf(dns=("me",))
    (tmp_path / "ca.crt").write_bytes(root.pem)
    user = {
        "client-certificate-data": base64.b64encode(leaf.chain_pem).decode(),
        "client-key-data": base64.b64encode(leaf.key_pem).decode(),
    }
    access = load_kubeconfig(
        [config(tmp_path / "config", cluster={"certificate-authority": "ca.crt"}, user=user)]
    )
    assert access.server == "https://10.0.0.1:6443"
    context = access.tls()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.cert_store_stats()["x509_ca"] == 1


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    access = load_kubeconfig([config(tmp_path / "config", user={"token": "s3cret"})])
    assert access.bearer() == "s3cret"
    assert "s3cret" not in repr(access)


def test_a_token_file_counts_before_a_token_and_is_read_each_time(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one\n")
    access = load_kubeconfig([config(tmp_path / "config", user={"token": "x", "tokenFile": "token"})])
    assert access.bearer() == "one"
    (tmp_path / "token").write_text("two")
    assert access.bearer() == "two"


def test_several_files_are_one_and_the_first_to_name_a_thing_counts(tmp_path: Path) -> None:
    first = config(tmp_path / "a", cluster={"server": "https://first"})
    second = config(
        tmp_path / "b",
        contexts=[{"name": "other", "context": {"cluster": "c2"}}],
        clusters=[
            {"name": "c", "cluster": {"server": "https://second"}},
            {"name": "c2", "cluster": {"server": "https://third"}},
        ],
    )
    environment = {"KUBECONFIG": f"{first}:{tmp_path / 'absent'}:{second}"}
    assert find_access(None, "", environment).server == "https://first"
    assert find_access(None, "other", environment).server == "https://third"


def test_in_a_pod_the_service_account_is_used(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("pod-token")
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    access = in_cluster(environment, tmp_path)
    assert access is not None
    assert access.server == "https://[fd00::1]:443"
    assert access.bearer() == "pod-token"
    assert in_cluster({}, tmp_path) is None


def test_a_pod_without_a_token_is_told_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="automountServiceAccountToken"):
        in_cluster({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": {"exec": {"command": "aws"}}}, "credential plugins are not run; use a token"),
        ({"user": {"username": "u", "password": "p"}}, "basic authentication is gone"),
        ({"user": {"as": "root"}}, "impersonation is not supported"),
        ({"user": {"client-key": "k"}}, "belong together"),
        ({"user": {"client-key-data": "%"}}, "is not base64"),
        ({"user": {"token": 7}}, "token must be text"),
        ({"cluster": {"proxy-url": "http://p"}}, "proxy-url is not supported"),
        ({"cluster": {"server": "10.0.0.1:6443"}}, "server must be a URL"),
        (
            {"cluster": {"server": "http://10.0.0.1"}, "user": {"token": "t"}},
            "credentials are not sent in clear",
        ),
        ({"current-context": ""}, "has no current-context; choose one with --context"),
        ({"current-context": "gone"}, 'no context "gone"; there are: main'),
        ({"users": []}, 'no user "u"; there are: none'),
        ({"clusters": {}}, 'no cluster "c"'),
        ({"clusters": "x"}, "clusters must be a list"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(AccessError) as caught:
        load_kubeconfig([config(tmp_path / "config", **changes)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("text", ["[", "just words", "- 1"])
def test_a_file_that_is_no_kubeconfig_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(AccessError, match="config: not"):
        load_kubeconfig([tmp_path / "config"])


def test_without_any_credentials_the_places_looked_at_are_named(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match=r"\.kube/config is not there; use --kubeconfig FILE"):
        find_access(None, "", {"HOME": str(tmp_path)})
