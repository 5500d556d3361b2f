-- +goose Up
ALTER TABLE vms ADD COLUMN disk_bytes INTEGER NOT NULL DEFAULT 0; -- of the work disk; 0 = none
ALTER TABLE vms ADD COLUMN nat INTEGER NOT NULL DEFAULT 0;
ALTER TABLE vms ADD COLUMN network TEXT NOT NULL DEFAULT '';
ALTER TABLE vms ADD COLUMN autostart INTEGER NOT NULL DEFAULT 0;
ALTER TABLE vms ADD COLUMN restart TEXT NOT NULL DEFAULT 'no';
ALTER TABLE vms ADD COLUMN idle_stop INTEGER NOT NULL DEFAULT 0; -- seconds; 0 = never
ALTER TABLE vms ADD COLUMN stale TEXT NOT NULL DEFAULT '[]'; -- JSON list of what holds only after a restart
CREATE INDEX vms_state ON vms (state);

-- +goose Down
DROP INDEX vms_state;
ALTER TABLE vms DROP COLUMN stale;
ALTER TABLE vms DROP COLUMN idle_stop;
ALTER TABLE vms DROP COLUMN restart;
ALTER TABLE vms DROP COLUMN autostart;
ALTER TABLE vms DROP COLUMN network;
ALTER TABLE vms DROP COLUMN nat;
ALTER TABLE vms DROP COLUMN disk_bytes;
