"""The `hebm` command: a command parses, calls one function or method of `hebmtool.api`, and prints.

`main` puts the commands together and turns failures (`failures`) into a sentence and an exit status; commands stand by
what they do, in `train`, `draw`, `images`, `look` and `recipes`; `options` has every option that several share, and its
checks; `outputs` is where what they make goes.  Nothing is computed here, so names, help, defaults and messages may be
changed without looking elsewhere, except for what is written to stdout, which programs read.  torch takes seconds to
import: whatever can be known without it, a wrong word or a name that is taken, is said before.  A new command is a
function in one of these files, or in a file of its own, and a word in `main.COMMANDS`.
"""
