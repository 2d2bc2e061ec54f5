"""Overrides of a command line and files of `conf/`: from text to typed values.

`words` reads FIELD=VALUE, `schema` finds the field and its type, `values` converts text to that
type, `yaml_text` reads YAML without losing the text of a scalar, `files` composes groups through
Hydra, `tree` puts everything together.
"""
