"""`python -m nsnet`."""

try:
    from nsnet.cli.main import main
except KeyboardInterrupt:  # Ctrl-C before anything was begun
    raise SystemExit(130) from None

main()
