#!/bin/sh
# Process 1 of a machine: loads the kernel's modules, says READY on the serial port "control", and runs what comes over it.
# One line in is one script in base64. One answer: `RESULT status length`, and so many bytes of output.
export PATH=/sbin:/bin:/usr/sbin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /dev/pts
while read -r module; do
  insmod "/modules/$module" || echo "module $module is not loaded"
done </modules/order
/sbin/ip link set lo up
for port in /sys/class/virtio-ports/*; do
  [ "$(cat "$port/name")" = control ] && control=/dev/${port##*/}
done
# The shell prefers what busybox has built in.
for program in ip ss ping ethtool; do
  alias "$program=/sbin/$program"
done
# What a machine does that takes no orders.
[ ! -e /start ] || . /start
exec 3<>"$control"
echo "READY $(uname -r)" >&3
while read -r line <&3; do
  echo "$line" | base64 -d >/tmp/script
  (. /tmp/script) >/tmp/output 2>&1 </dev/null
  echo "RESULT $? $(stat -c %s /tmp/output)" >&3
  cat /tmp/output >&3
done
poweroff -f
