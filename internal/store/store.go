// Package store keeps what must outlive bangerd in one SQLite file: VMs,
// images and kernels. It holds no policy; kernel objects are never stored,
// their names follow from the VM's id.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

//go:embed migrations/*.sql
var migrations embed.FS

// What a caller needs to tell apart.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("already exists")
	// ErrInUse: another record still refers to this one.
	ErrInUse = errors.New("in use")
)

// Store is safe for concurrent use.
type Store struct{ db *sql.DB }

// Open opens or creates the database and brings it to this build's schema. A
// database of a newer build is refused.
func Open(ctx context.Context, path string) (*Store, error) {
	// FULL: what was answered survives a power cut; a VM that came back after its
	// delete, or was gone after its creation, would be no record to trust.
	dsn := "file:" + path + "?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(1)&_txlock=immediate"
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("cannot open store: %w", err)
	}
	// One connection: writes are short, and SQLite then never reports "busy".
	db.SetMaxOpenConns(1)
	s := &Store{db}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open store %s: %w", path, err), db.Close())
	}
	return s, nil
}

func (s *Store) prepare(ctx context.Context) error {
	// Drivers have been known to ignore a pragma spelled for another driver.
	for pragma, want := range map[string]string{"foreign_keys": "1", "journal_mode": "wal", "busy_timeout": "5000", "synchronous": "2"} {
		var got string
		if err := s.db.QueryRowContext(ctx, "PRAGMA "+pragma).Scan(&got); err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("pragma %s is %q, want %q", pragma, got, want)
		}
	}
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, s.db, sub, goose.WithVerbose(false))
	if err != nil {
		return err
	}
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		return err
	}
	if have > want {
		return fmt.Errorf("it has schema %d, this build knows %d: it was used by a newer banger", have, want)
	}
	_, err = p.Up(ctx)
	return err
}

// Close closes the database.
func (s *Store) Close() error { return s.db.Close() }

// wrap turns SQLite's constraint errors into this package's.
func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		switch e.Code() {
		case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
			return fmt.Errorf("%s: %w", what, ErrExists)
		case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
			return fmt.Errorf("%s: %w", what, ErrInUse)
		}
	}
	return fmt.Errorf("cannot store %s: %w", what, err)
}

// changed fails with ErrNotFound when a statement met no row.
func changed(what string, r sql.Result, err error) error {
	if err != nil {
		return wrap(what, err)
	}
	n, err := r.RowsAffected()
	if err == nil && n == 0 {
		err = sql.ErrNoRows
	}
	return wrap(what, err)
}

func placeholders(n int) string { return "(?" + strings.Repeat(",?", n-1) + ")" }
