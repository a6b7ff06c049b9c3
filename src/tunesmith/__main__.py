"""``python -m tunesmith``: the command line where the script ``tunesmith`` is not on the path."""

from tunesmith.cli.app import main

if __name__ == "__main__":
    main()
