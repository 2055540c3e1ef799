"""Run the command line with `python -m diskreplay`."""

from diskreplay.commands import main

if __name__ == "__main__":
    main(prog_name="diskreplay")
