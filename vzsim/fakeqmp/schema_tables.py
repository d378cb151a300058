"""The tables of commands and their arguments, as text; `schema` reads them.

A line is a command with its members ``name:kind`` or ``name?:kind`` in QEMU's order; a star says
that the command takes more than is spelt out. Source: the recorded ``query-qmp-schema`` replies.
"""

NAMES_ONLY = (
    "query-status query-version query-name query-uuid query-block"
    " query-jobs query-block-jobs query-chardev query-events query-commands query-fdsets"
    " query-current-machine query-machines query-cpus-fast query-migrate"
    " query-block-exports stop cont quit system_powerdown system_reset system_wakeup"
    " migrate_cancel inject-nmi"
)

COMMON = """
qmp_capabilities enable?:list
getfd fdname:str
closefd fdname:str
add-fd fdset-id?:int opaque?:str
remove-fd fdset-id:int fd?:int
human-monitor-command command-line:str cpu-index?:int
eject device?:str id?:str force?:bool
watchdog-set-action action:reset|shutdown|poweroff|pause|debug|none|inject-nmi
set-action reboot?:reset|shutdown shutdown?:poweroff|pause panic?:str watchdog?:str
migrate uri?:str channels?:list detach?:bool resume?:bool
migrate-set-capabilities capabilities:list
migrate-pause
"""

BLOCK = """
blockdev-add driver:str *
blockdev-del node-name:str
blockdev-backup job-id?:str device:str sync:top|full|none|incremental|bitmap speed?:int \
bitmap?:str bitmap-mode?:on-success|never|always compress?:bool \
on-source-error?:report|ignore|enospc|stop|auto on-target-error?:report|ignore|enospc|stop|auto \
auto-finalize?:bool auto-dismiss?:bool filter-node-name?:str x-perf?:dict target:str
transaction actions:list properties?:dict
block-dirty-bitmap-add node:str name:str granularity?:int persistent?:bool disabled?:bool
block-dirty-bitmap-remove node:str name:str
block-dirty-bitmap-clear node:str name:str
block-dirty-bitmap-enable node:str name:str
block-dirty-bitmap-disable node:str name:str
block-dirty-bitmap-merge node:str target:str bitmaps:list
x-debug-block-dirty-bitmap-sha256 node:str name:str
block_resize device?:str node-name?:str size:int
block-job-set-speed device:str speed:int
block-job-cancel device:str force?:bool
block-job-pause device:str
block-job-resume device:str
block-job-complete device:str
block-job-finalize id:str
block-job-dismiss id:str
job-pause id:str
job-resume id:str
job-cancel id:str
job-complete id:str
job-finalize id:str
job-dismiss id:str
blockdev-snapshot-sync device?:str node-name?:str snapshot-file:str format?:str *
block-stream device:str *
drive-mirror job-id?:str device:str target:str format?:str node-name?:str replaces?:str \
sync:full|top|none|incremental|bitmap mode?:existing|absolute-paths speed?:int *
nbd-server-start addr:dict tls-creds?:str tls-authz?:str max-connections?:int
nbd-server-stop
block-export-add type:nbd|vhost-user-blk|fuse|vduse-blk id:str node-name:str writable?:bool *
block-export-del id:str mode?:safe|hard
qom-get path:str property:str
qom-set path:str property:str value:any
query-named-block-nodes flat?:bool
query-blockstats query-nodes?:bool
"""

PATCHED = """
backup backup-file:str password?:str keyfile?:str key-password?:str master-keyfile?:str \
fingerprint?:str backup-ns?:str backup-id?:str backup-time?:int use-dirty-bitmap?:bool \
compress?:bool encrypt?:bool format?:vma|pbs config-file?:str firewall-file?:str devlist?:str \
speed?:int max-workers?:int fleecing?:bool
backup-cancel
query-backup
query-pbs-bitmap-info
query-proxmox-support
backup-access-setup target-id:str devices:list
backup-access-teardown target-id:str success:bool
"""

# All commands of the storage daemon in the order of its own list.
DAEMON_NAMES = (
    "transaction object-del object-add qom-list-properties qom-list-types qom-set qom-get"
    " qom-list query-qmp-schema quit query-commands query-version qmp_capabilities"
    " chardev-send-break chardev-remove chardev-change chardev-add ringbuf-read ringbuf-write"
    " query-chardev-backends query-chardev query-block-exports block-export-del block-export-add"
    " nbd-server-stop nbd-server-remove nbd-server-add nbd-server-start query-jobs job-finalize"
    " job-dismiss job-complete job-cancel job-resume job-pause"
    " blockdev-snapshot-delete-internal-sync blockdev-snapshot-internal-sync"
    " x-blockdev-set-iothread x-blockdev-change block-set-write-threshold x-blockdev-amend"
    " blockdev-create blockdev-del blockdev-reopen blockdev-add block-job-finalize"
    " block-job-dismiss block-job-complete block-job-resume block-job-pause block-job-cancel"
    " block-job-set-speed block-stream blockdev-mirror x-debug-block-dirty-bitmap-sha256"
    " block-dirty-bitmap-merge block-dirty-bitmap-disable block-dirty-bitmap-enable"
    " block-dirty-bitmap-clear block-dirty-bitmap-remove block-dirty-bitmap-add drive-mirror"
    " x-debug-query-block-graph query-named-block-nodes blockdev-backup drive-backup"
    " block-commit change-backing-file blockdev-snapshot blockdev-snapshot-sync block_resize"
    " query-block-jobs query-blockstats query-block"
)
