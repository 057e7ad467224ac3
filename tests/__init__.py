"""Tests of Ambient Lite. Shared test equipment is in `tests.support`."""
