-- +goose Up
ALTER TABLE vms ADD COLUMN cpu_weight INTEGER NOT NULL DEFAULT 0; -- 0 = systemd's default
ALTER TABLE vms ADD COLUMN io_weight INTEGER NOT NULL DEFAULT 0; -- likewise
ALTER TABLE vms ADD COLUMN cpu_limit INTEGER NOT NULL DEFAULT 0; -- thousandths of a CPU; 0 = none
ALTER TABLE vms ADD COLUMN io_limit INTEGER NOT NULL DEFAULT 0; -- bytes a second; 0 = none

-- +goose Down
ALTER TABLE vms DROP COLUMN io_limit;
ALTER TABLE vms DROP COLUMN cpu_limit;
ALTER TABLE vms DROP COLUMN io_weight;
ALTER TABLE vms DROP COLUMN cpu_weight;
