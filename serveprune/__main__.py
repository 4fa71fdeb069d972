from serveprune.cli.app import main

main()
