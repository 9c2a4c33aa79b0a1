"""`python -m lumina_vault` is `vault`."""

from lumina_vault.cli.main import main

main()
