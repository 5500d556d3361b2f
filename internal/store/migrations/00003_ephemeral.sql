-- +goose Up
ALTER TABLE vms ADD COLUMN ephemeral INTEGER NOT NULL DEFAULT 0; -- deleted when nobody holds its lease

-- +goose Down
ALTER TABLE vms DROP COLUMN ephemeral;
