"""One module a command, or a small family of them; :mod:`rompatch.cli.program` names them all."""
