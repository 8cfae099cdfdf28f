"""`python -m nsnet`."""

from nsnet.cli.main import main

main()
