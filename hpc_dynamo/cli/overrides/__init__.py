"""Overrides of a command line and files of `conf/`: from text to typed values.

- `arguments.py`: FIELD=VALUE, GROUP=FILE and ~FIELD of a command line.
- `field_lookup.py`: The field with a dotted name, and its type.
- `renamed.py`: Old names of fields.
- `values.py`: From the text of a value to its type.
- `yaml_text.py`: YAML that keeps the text of scalars.
- `files.py`: Files of groups.
- `hydra_files.py`: Composes them, with Hydra.
- `tree.py`: The configuration, built from all of these.
- `commented.py`: The configuration as YAML with comments.
- `suggest.py`: Overrides for options of other tools.
"""
