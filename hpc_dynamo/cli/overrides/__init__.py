"""Overrides of a command line and files of `conf/`: from text to typed values.

`words` reads FIELD=VALUE, `schema` finds the field and its type, `values` converts text to that
type, `yaml_text` reads YAML and keeps the text of scalars, `files` composes groups through Hydra,
`tree` builds the configuration from all of them.
"""
