"""Where objects come from. `folder` holds what a folder says (pure of watching), `files` watches it."""
