# Runs in the appliance's root, as its root, once, when all packages are there.
set -eu

# The owner of the banger in this machine. "*" bars passwords and, unlike "!",
# does not bar keys.
useradd --create-home --shell /bin/bash --password '*' dev

# Each machine brings its own host key (banger-machine-seed.service).
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub

systemctl --quiet enable systemd-networkd systemd-resolved nftables \
	banger-machine-seed banger-machine-ready

# Nobody types at this machine, and nothing in it changes by itself.
systemctl --quiet mask getty@tty1.service serial-getty@ttyS0.service \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
	e2scrub_all.timer e2scrub_reap.service systemd-networkd-wait-online.service

ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
: >/etc/machine-id
echo banger-machine >/etc/hostname
printf '127.0.0.1 localhost banger-machine\n::1 localhost\n' >/etc/hosts
echo 'LABEL=banger-machine / ext4 errors=remount-ro 0 1' >/etc/fstab
