#!/usr/bin/env bash
# Starts a small Ceph with its S3 gateway on loopback: a strict server that checks signatures. Then the tests of buckets:
#
#   apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-mgr ceph-common
#   tests/ceph_gateway.sh /tmp/ceph
#   TEACHONCE_TEST_S3=http://key:secretsecret@127.0.0.1:7480 pytest -n 0 tests/pipeline/test_buckets.py tests/stages/test_bucket_way.py
#   pkill -f /tmp/ceph/ceph.conf
set -euo pipefail
folder=$(realpath -m "$1")
mkdir -p "$folder"/{mon.a,mgr.x,osd.0,rgw}
cd "$folder"
id=$(cat /proc/sys/kernel/random/uuid)
disk=$(cat /proc/sys/kernel/random/uuid)

cat > ceph.conf <<CONF
[global]
fsid = $id
mon host = v1:127.0.0.1:6789
mon initial members = a
public addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
osd objectstore = memstore
memstore device bytes = 4294967296
run dir = $folder
admin socket = $folder/\$name.asok
pid file = $folder/\$name.pid
log file = $folder/\$name.log
keyring = $folder/keyring
mon data = $folder/mon.a
mgr data = $folder/mgr.x
osd data = $folder/osd.0
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:7480
rgw data = $folder/rgw
CONF

key() { ceph-authtool keyring --gen-key -n "$@" > /dev/null; }
ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon 'allow *' > /dev/null
key client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
key osd.0 --cap mon 'allow profile osd' --cap osd 'allow *' --cap mgr 'allow profile osd'
key mgr.x --cap mon 'allow profile mgr' --cap osd 'allow *'
key client.rgw --cap mon 'allow rwx' --cap osd 'allow rwx' --cap mgr 'allow rw'

monmaptool --create --addv a '[v1:127.0.0.1:6789]' --fsid "$id" monmap > /dev/null
ceph-mon -c ceph.conf --mkfs -i a --monmap monmap
ceph-mon -c ceph.conf -i a
ceph-mgr -c ceph.conf -i x
timeout 60 ceph -c ceph.conf osd new "$disk" > /dev/null
ceph-osd -c ceph.conf -i 0 --mkfs --osd-uuid "$disk" --no-mon-config
ceph-osd -c ceph.conf -i 0
timeout 60 ceph -c ceph.conf osd crush add osd.0 1.0 root=default host=here
radosgw -c ceph.conf -n client.rgw
timeout 120 radosgw-admin -c ceph.conf user create --uid=tests --display-name=tests --access-key=key --secret-key=secretsecret > /dev/null
until curl -fsS http://127.0.0.1:7480/ > /dev/null 2>&1; do sleep 0.5; done
echo "an S3 server on http://127.0.0.1:7480, key: key, secret: secretsecret"
