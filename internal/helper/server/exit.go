package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"banger/internal/helper"
)

func (p Places) exitRecord(id string) string { return filepath.Join(p.Exit, id+".json") }

// writeExit records systemd's verdict, which nobody can ask for any more once
// the unit is gone. bangerd waits for the file to be moved into place.
func (p Places) writeExit(id string, getenv func(string) string) error {
	raw, err := json.Marshal(helper.Exit{
		ID:       id,
		Result:   getenv("SERVICE_RESULT"),
		ExitCode: getenv("EXIT_CODE"),
		Status:   getenv("EXIT_STATUS"),
		UnixNano: time.Now().UnixNano(),
	})
	if err != nil {
		return err
	}
	if err := writeAtomic(p.exitRecord(id), append(raw, '\n'), 0o644); err != nil {
		return fmt.Errorf("cannot write exit record: %w", err)
	}
	return nil
}

func (p Places) forgetExit(id string) error {
	if err := os.Remove(p.exitRecord(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove exit record: %w", err)
	}
	return nil
}
