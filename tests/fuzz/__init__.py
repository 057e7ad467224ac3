"""libFuzzer targets for the C core, their seeds and their driver (`run`)."""
