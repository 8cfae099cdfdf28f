"""`python -m nsnet`."""

from nsnet.garbage import kept

try:
    with kept():
        from nsnet.cli.main import main
except KeyboardInterrupt:  # Ctrl-C before anything was begun
    raise SystemExit(130) from None

main()
