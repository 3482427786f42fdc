"""`python -m ddx`: the command line, for launchers that take a module (`torchrun -m ddx distill …`)."""

from ddx.cli.main import main

if __name__ == "__main__":
    main()
