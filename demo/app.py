"""The demo. See `python demo/app.py --help`."""

from sam_bigltl.cli.demo import main

if __name__ == "__main__":
    main()
