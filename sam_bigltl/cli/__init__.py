"""The command line, one file a command: flags, their checks, and what is printed. May use every other room."""

from .commands import COMMANDS, main

__all__ = ["COMMANDS", "main"]
