#!/usr/bin/env bash
# The rest of the guest's boot, on the host's root: kernel modules, network, soft-RoCE; then the command, its exit status
# into the share, and power off. Run by boot.sh as the guest's first process.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
guest=$(sed 's/.*holdfast\.guest=\([0-9]*\).*/\1/' /proc/cmdline)
set -a
HOLDFAST_HW_SHARE=/run/holdfast-hw
. "$HOLDFAST_HW_SHARE/guest$guest/environment"
set +a
mine=$HOLDFAST_HW_SHARE/guest$guest
say() { echo "holdfast-hw: $*"; }

mkdir -p /dev/pts /dev/shm /dev/mqueue /run/lock
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
ln -sfn /proc/self/fd /dev/fd
for n in 0:stdin 1:stdout 2:stderr; do ln -sfn "/proc/self/fd/${n%:*}" "/dev/${n#*:}"; done
hostname "guest$guest"
{ echo "127.0.0.1 localhost"; for n in 1 2; do echo "10.77.0.$n guest$n"; done; } > /etc/hosts
# The guest's kernel is not the host's: its modules take the place of whatever the host has.
rm -rf /lib/modules 2> /dev/null
mkdir -p /lib/modules
mount --bind /run/holdfast-image/lib/modules /lib/modules

# The generic checksums must be there before rdma_rxe, which asks for them without naming them as a dependency.
modprobe -a crc32c_generic crc32_generic
modprobe -a rdma_rxe ib_uverbs rdma_ucm nvme_fabrics nvme_rdma nvme_tcp nvmet nvmet_rdma nvmet_tcp loop || say "not all modules load"
mount -t configfs configfs /sys/kernel/config 2> /dev/null
if [ -e /run/holdfast-image/nvme-loop.ko ]; then insmod /run/holdfast-image/nvme-loop.ko || say "nvme-loop does not load"; fi

ip link set lo up
ip link set "$HOLDFAST_HW_NETDEV" mtu 4200 up
ip address add "$HOLDFAST_HW_ADDRESS/24" dev "$HOLDFAST_HW_NETDEV"
rdma link add "$HOLDFAST_HW_RDMA" type rxe netdev "$HOLDFAST_HW_NETDEV" || say "no soft-RoCE on $HOLDFAST_HW_NETDEV"

# Core dumps land in the share, where the host finds them.
mkdir -p "$mine/cores"
echo "$mine/cores/core.%e.%p" > /proc/sys/kernel/core_pattern
ulimit -c unlimited
ulimit -l unlimited
ulimit -n 65536
cd "$HOLDFAST_HW_PROJECT" || exit 1
cut -d' ' -f1 /proc/uptime > "$mine/ready"
# At the deadline the host asks what this guest hangs in: blocked tasks and all processes, on the console.
(
  exec 9<> <(:)
  until [ -e "$HOLDFAST_HW_SHARE/control/hangs" ]; do read -r -t 2 -u 9; done
  echo 6 > /proc/sysrq-trigger
  echo w > /proc/sysrq-trigger
  ps -eo pid,stat,wchan:24,args
) &
if [ "$HOLDFAST_HW_SHELL" = 1 ]; then
  say "guest $guest of $HOLDFAST_HW_GUESTS; the root is the host's, writes to it stay here; $HOLDFAST_HW_SHARE is shared; leave with 'exit'"
  # The console itself can not be a controlling terminal; the line under it can.
  setsid -c -w bash -i < /dev/ttyS0 > /dev/ttyS0 2>&1
  status=$?
else
  # A session of its own, so that a signal to its group doesn't reach the first process.
  setsid -w bash "$mine/command.sh" > "$mine/output.log" 2>&1 < /dev/null
  status=$?
fi
dmesg > "$mine/dmesg.log"
echo "$status" > "$mine/status.new"
sync
mv "$mine/status.new" "$mine/status"
echo o > /proc/sysrq-trigger
# The first process must not end before the power is off, and nothing on the host's root can be counted on any more.
while :; do :; done
