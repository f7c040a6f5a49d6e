from hw_bench.cli import main

main()
