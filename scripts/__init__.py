"""Commands of the Makefile, and the hooks of the documentation site."""
