from semprobe.cli import main

main()
