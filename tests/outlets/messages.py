"""One message that tests send."""

from vzdump_qemu.outlet_ports import Message

MESSAGE = Message(
    subject="vzdump backup status (pve1.example.com): backup successful",
    summary="VMID  Name\n100   wéb",
    text="VMID  Name\n100   wéb\n\nLogs\n====\n100: INFO: status = running",
    html="<p>100 w&eacute;b</p>",
    failed=False,
    template_name="vzdump",
    template_data={"status-text": "backup successful", "total-size": 5},
    fields={"type": "vzdump", "hostname": "pve1"},
)
