"""Kernel programs (C for BCC), kernel-header stubs to compile them with, and the compiled byte code."""
