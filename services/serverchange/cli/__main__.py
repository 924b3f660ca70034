"""Lets `python -m serverchange.cli` do what the console script `serverchange` does."""

from serverchange.cli.main import main

if __name__ == "__main__":
    main()
