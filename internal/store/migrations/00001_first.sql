-- +goose Up
CREATE TABLE images (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    size        INTEGER NOT NULL,
    disk_bytes  INTEGER NOT NULL,
    files       INTEGER NOT NULL,
    imported_at INTEGER NOT NULL
) STRICT;

CREATE TABLE kernels (
    id             TEXT PRIMARY KEY,
    name           TEXT NOT NULL UNIQUE,
    release        TEXT NOT NULL,
    size           INTEGER NOT NULL,
    sha256         TEXT NOT NULL,
    modules        TEXT NOT NULL, -- JSON list in load order
    min_memory_mib INTEGER NOT NULL,
    initrd_sha256  TEXT NOT NULL, -- '' = not built yet
    initrd_agent   TEXT NOT NULL, -- sha256 of the agent in it
    imported_at    INTEGER NOT NULL
) STRICT;

-- State holds the *-ing states too: they are written before the first effect,
-- so that a crash is found at the next start.
CREATE TABLE vms (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    state      TEXT NOT NULL,
    reason     TEXT NOT NULL,
    image_id   TEXT NOT NULL REFERENCES images (id),
    kernel_id  TEXT NOT NULL REFERENCES kernels (id),
    vcpu       INTEGER NOT NULL,
    memory_mib INTEGER NOT NULL,
    slot       INTEGER NOT NULL, -- -1 = none yet
    uid        INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER NOT NULL, -- 0 = never
    host_boot  TEXT NOT NULL,    -- boot id of the host at the last start
    timing     TEXT NOT NULL,    -- JSON list of api.PhaseTime
    guest      TEXT NOT NULL     -- JSON api.Guest or ''
) STRICT;
CREATE INDEX vms_image ON vms (image_id);
CREATE INDEX vms_kernel ON vms (kernel_id);

-- +goose Down
DROP TABLE vms;
DROP TABLE kernels;
DROP TABLE images;
