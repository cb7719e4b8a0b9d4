"""`python -m mtl_re` and `accelerate launch -m mtl_re`: the same as the `mtl-re` command."""

from mtl_re.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
