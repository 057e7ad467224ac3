"""Which field of which kind does what: a table whose rows are tests, and the page made of it."""
