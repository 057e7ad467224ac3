"""The command `istiodlite`: serve, token, root-cert, convert."""

import argparse
import datetime
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import trio
import yaml

from istiodlite.ca.authority import Authority
from istiodlite.ca.caller import Caller
from istiodlite.ca.files import DataError
from istiodlite.ca.following import change_by_hand
from istiodlite.ca.roots import advance, state_of
from istiodlite.ca.rotation import Step, due_at, next_step
from istiodlite.ca.tokens import DEFAULT_TTL, load_or_create_token_key, mint
from istiodlite.kube import AccessError, ApiError, KubeClient, find_access
from istiodlite.manifests import DEFAULT_SIZE_LIMIT, load_folder
from istiodlite.manifests.errors import FieldError
from istiodlite.manifests.mesh import HONOURED, load_mesh
from istiodlite.registry import MeshConfig, Registry
from istiodlite.server.app import serve
from istiodlite.server.config import KubeConfig, ServeConfig, StartError, parse_address
from istiodlite.server.present import condition_values, overview


def _account(text: str) -> tuple[str, str]:
    namespace, _, name = text.partition("/")
    if not namespace or not name:
        raise argparse.ArgumentTypeError(f'"{text}" is not NAMESPACE/SERVICE-ACCOUNT')
    return namespace, name


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f'"{text}" is not a port from 0 to 65535')
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f'"{text}" is not a positive number')
    return value


def _address(text: str) -> tuple[str, int]:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_mesh(parser: argparse.ArgumentParser) -> None:
    default = MeshConfig()
    parser.add_argument("--trust-domain", default=default.trust_domain, help="default %(default)s")
    parser.add_argument("--cluster-id", default=default.cluster_id, help="default %(default)s")
    parser.add_argument("--network", default=default.network, help="network id of this cluster; default none")
    parser.add_argument("--root-namespace", default=default.root_namespace, help="default %(default)s")
    parser.add_argument("--domain", default=default.domain, help="DNS domain; default %(default)s")
    parser.add_argument(
        "--mesh-config",
        type=Path,
        metavar="FILE",
        help=f"Istio's MeshConfig as YAML; of it count {', '.join(HONOURED)}, before the other options",
    )


def _mesh(arguments: argparse.Namespace) -> MeshConfig:
    flags = MeshConfig(
        cluster_id=arguments.cluster_id,
        trust_domain=arguments.trust_domain,
        domain=arguments.domain,
        root_namespace=arguments.root_namespace,
        network=arguments.network,
    )
    if arguments.mesh_config is None:
        return flags
    try:
        mesh, others = load_mesh(arguments.mesh_config, flags)
    except OSError as error:
        raise StartError(f"--mesh-config: {error.filename}: {error.strerror}") from None
    except FieldError as error:
        raise StartError(f"--mesh-config: {error.field}: {error.message}") from None
    if others:
        print(f"istiodlite: --mesh-config: not read here: {', '.join(others)}", file=sys.stderr)
    return mesh


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="istiodlite", description="Control plane of an ambient mesh: discovery and certificates."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="serve xDS, certificates and status"))
    token = commands.add_parser("token", help="print a token for a pod")
    token.add_argument("--data", type=Path, required=True, help="directory with root and token key")
    token.add_argument("--namespace", default="istio-system", help="default %(default)s")
    token.add_argument("--service-account", default="ztunnel", help="default %(default)s")
    token.add_argument("--pod", default="", help="pod the token is bound to")
    token.add_argument("--pod-uid", default="", help="UID of that pod")
    token.add_argument("--node", default="", help="node of that pod")
    token.add_argument("--ttl", type=_positive, default=DEFAULT_TTL, help="seconds; default %(default)s")
    root = commands.add_parser("root-cert", help="print the root certificates (made if missing)")
    root.add_argument("--data", type=Path, required=True, help="directory with root and token key")
    root.add_argument("--trust-domain", default=MeshConfig().trust_domain, help="default %(default)s")
    rotate = commands.add_parser(
        "rotate-root", help="begin to replace the root, or see how far it is; running servers follow"
    )
    where = rotate.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", type=Path, help="directory with root and token key")
    where.add_argument("--kube", action="store_true", help="the root in the secret istio-ca-secret")
    _add_access(rotate)
    rotate.add_argument("--root-namespace", default=MeshConfig().root_namespace, help="default %(default)s")
    rotate.add_argument("--trust-domain", default=MeshConfig().trust_domain, help="default %(default)s")
    which = rotate.add_mutually_exclusive_group()
    which.add_argument("--show", action="store_true", help="only say what is next, and when")
    which.add_argument(
        "--now", action="store_true", help="take the next step at once: certificates may become invalid"
    )
    convert = commands.add_parser("convert", help="print the resources that manifests become")
    convert.add_argument("path", type=Path, metavar="FILE|DIR")
    convert.add_argument("-o", "--output", choices=("yaml", "json"), default="yaml")
    _add_mesh(convert)
    return parser


def _add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kubeconfig", type=Path, help="with --kube; default: the pod's account, $KUBECONFIG, ~/.kube/config"
    )
    parser.add_argument("--context", default="", help="of the kubeconfig; default its current one")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--objects", type=Path, help="folder of manifests to watch")
    source.add_argument("--kube", action="store_true", help="watch a Kubernetes cluster")
    parser.add_argument("--data", type=Path, help="with --objects: directory that keeps root and token key")
    _add_access(parser)
    parser.add_argument(
        "--cacerts",
        type=Path,
        help="with --kube: folder with a plugged-in CA; default secret istio-ca-secret",
    )
    parser.add_argument(
        "--listen", type=_address, default="0.0.0.0:15012", help="xDS and CA; default %(default)s"
    )
    parser.add_argument("--status-port", type=_port, default=15014, help="default %(default)s")
    parser.add_argument(
        "--status-host", default=None, help="address of the status port; default that of --listen"
    )
    parser.add_argument(
        "--webhook-port",
        type=_port,
        default=None,
        help="admission webhook (HTTPS); default 15017 with --kube, else off; 0 is off",
    )
    parser.add_argument(
        "--san", action="append", default=[], help="further name or address in the serving certificate"
    )
    parser.add_argument(
        "--trusted-node-account",
        action="append",
        type=_account,
        help="NAMESPACE/ACCOUNT that may ask for identities of its node; default ROOT/ztunnel",
    )
    parser.add_argument("--debounce-quiet", type=_positive, default=0.1, help="seconds; default %(default)s")
    parser.add_argument(
        "--debounce-longest", type=_positive, default=10.0, help="seconds; default %(default)s"
    )
    parser.add_argument("--max-file-bytes", type=int, default=DEFAULT_SIZE_LIMIT, help="default %(default)s")
    parser.add_argument("--open-debug", action="store_true", help="show /debug/ pages to other machines too")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    _add_mesh(parser)


def _kube(arguments: argparse.Namespace) -> KubeConfig | None:
    if arguments.kube:
        if arguments.data is not None:
            raise StartError("--data belongs to --objects; a cluster keeps the root itself")
        return KubeConfig(find_access(arguments.kubeconfig, arguments.context, os.environ), arguments.cacerts)
    if arguments.data is None:
        raise StartError("--objects needs --data, a directory that keeps root and token key")
    if arguments.kubeconfig or arguments.context or arguments.cacerts:
        raise StartError("--kubeconfig, --context and --cacerts belong to --kube")
    return None


def _serve(arguments: argparse.Namespace) -> int:
    logging.basicConfig(
        level=arguments.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    if arguments.log_level != "debug":
        # It tells of every request, which our own log does where it matters.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
    mesh = _mesh(arguments)
    accounts = arguments.trusted_node_account or [(mesh.root_namespace, "ztunnel")]
    webhook = arguments.webhook_port
    if webhook is None:
        webhook = 15017 if arguments.kube else 0
    config = ServeConfig(
        mesh=mesh,
        webhook=(arguments.listen[0], webhook) if webhook else None,
        objects=arguments.objects,
        data=arguments.data,
        kube=_kube(arguments),
        listen=arguments.listen,
        status=(arguments.status_host or arguments.listen[0], arguments.status_port),
        extra_names=tuple(arguments.san),
        trusted_node_accounts=frozenset(accounts),
        debounce_quiet=arguments.debounce_quiet,
        debounce_longest=arguments.debounce_longest,
        size_limit=arguments.max_file_bytes,
        open_debug=arguments.open_debug,
    )
    trio.run(serve, config)
    return 0


def _token(arguments: argparse.Namespace) -> int:
    if bool(arguments.pod) != bool(arguments.pod_uid):
        raise StartError("--pod and --pod-uid belong together; give both or none")
    caller = Caller(
        arguments.namespace, arguments.service_account, arguments.pod, arguments.pod_uid, arguments.node
    )
    key = load_or_create_token_key(arguments.data)
    print(mint(key, caller, datetime.datetime.now(datetime.UTC), int(arguments.ttl)))
    return 0


def _root_cert(arguments: argparse.Namespace) -> int:
    authority = Authority.load_or_create(arguments.data, arguments.trust_domain)
    sys.stdout.write(authority.roots_pem.decode())
    return 0


def _rotate_root(arguments: argparse.Namespace) -> int:
    now = datetime.datetime.now(datetime.UTC)
    done, step, due = (_rotate_secret if arguments.kube else _rotate_data)(arguments, now)
    if done is not None:
        print(f"done: {done}")
    print(f"next: {step}, by itself on {due:%Y-%m-%d %H:%M} UTC (--now does it at once)")
    return 0


_Rotated = tuple[Step | None, Step, datetime.datetime]


def _rotate_data(arguments: argparse.Namespace, now: datetime.datetime) -> _Rotated:
    roots, done = state_of(arguments.data), None
    if arguments.now or (next_step(roots) is Step.INTRODUCE and not arguments.show):
        done = advance(arguments.data, arguments.trust_domain, now)
        roots = state_of(arguments.data)
    return done, next_step(roots), due_at(roots)


def _rotate_secret(arguments: argparse.Namespace, now: datetime.datetime) -> _Rotated:
    access = find_access(arguments.kubeconfig, arguments.context, os.environ)

    async def change() -> _Rotated:
        place, domain = arguments.root_namespace, arguments.trust_domain
        async with KubeClient(access) as client:
            return await change_by_hand(
                client, place, domain, now, act=not arguments.show, at_once=arguments.now
            )

    try:
        return trio.run(change)
    except ApiError as error:
        raise StartError(f"the root in the secret cannot be changed: {error}") from None


def _convert(arguments: argparse.Namespace) -> int:
    try:
        loaded, errors = load_folder(arguments.path)
    except OSError as error:
        raise StartError(f"{arguments.path}: {error.strerror}; name a file or a folder") from None
    registry = Registry(_mesh(arguments))
    registry.apply({one.key: one.object for one in loaded})
    shown = {**overview(registry.resources), "conditions": condition_values(registry.conditions())}
    if arguments.output == "json":
        print(json.dumps(shown, indent=2))
    else:
        print(yaml.safe_dump(shown, sort_keys=False), end="")
    for problem in errors:
        print(f"istiodlite: {problem}", file=sys.stderr)
    return 1 if errors else 0


_COMMANDS = {
    "serve": _serve,
    "token": _token,
    "root-cert": _root_cert,
    "rotate-root": _rotate_root,
    "convert": _convert,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 fine, 1 an error (one line on stderr), 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    try:
        return _COMMANDS[arguments.command](arguments)
    except (StartError, DataError, AccessError) as error:
        print(f"istiodlite: {error}", file=sys.stderr)
        return 1
