"""``python -m vzdump_qemu``: the same as the script ``vzdump-qemu``."""

from vzdump_qemu.cli.main import main

main()
