#!/bin/sh
# First process of the guest, inside the initramfs (static busybox): loads what reaching the host's root takes, lays a tmpfs over that
# root, and hands over to start.sh, which is read from the project itself.
export PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /host /share /layer /newroot
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
give_up() {
  echo "holdfast-hw: $1"
  echo o > /proc/sysrq-trigger
  sleep 10
}
while read -r module; do insmod "/modules/$module" || give_up "module $module does not load"; done < /modules/order
grep -q 'holdfast\.probe' /proc/cmdline && give_up 'this machine boots guests'
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro hostroot /host || give_up 'the root of the host is not there'
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none share /share || give_up 'the share is not there'
mount -t tmpfs -o size=50% layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work root /newroot || give_up 'the root can not be laid out'
guest=$(sed 's/.*holdfast\.guest=\([0-9]*\).*/\1/' /proc/cmdline)
. "/share/guest$guest/environment"
umount /proc /sys
mount -t proc proc /newroot/proc
mount -t sysfs sysfs /newroot/sys
mount --move /dev /newroot/dev
mount -t tmpfs -o mode=1777 tmp /newroot/tmp
mount -t tmpfs -o mode=755 run /newroot/run
mkdir /newroot/run/holdfast-hw /newroot/run/holdfast-image
mount --move /share /newroot/run/holdfast-hw
mount --bind "/host$HOLDFAST_HW_IMAGE" /newroot/run/holdfast-image
# A project that lies under what was just covered comes back on top.
case "$HOLDFAST_HW_PROJECT" in /tmp/* | /run/*)
  mkdir -p "/newroot$HOLDFAST_HW_PROJECT" /layer/upper2 /layer/work2
  mount -t overlay -o "lowerdir=/host$HOLDFAST_HW_PROJECT,upperdir=/layer/upper2,workdir=/layer/work2" project "/newroot$HOLDFAST_HW_PROJECT"
  ;;
esac
exec switch_root /newroot /bin/bash "$HOLDFAST_HW_PROJECT/hw-test/guest/start.sh" < /dev/console > /dev/console 2>&1
