package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// Image is the record of an image; its files lie in the directory named by ID.
type Image struct {
	ID, Name        string
	Size, DiskBytes int64
	Files           int
	ImportedAt      time.Time
	UsedBy          []string // joined, not written
}

// Kernel is the record of a guest kernel; its files lie in the directory named
// by ID.
type Kernel struct {
	ID, Name     string
	Release      string
	Size         int64
	SHA256       string
	Modules      []string
	MinMemoryMiB int
	InitrdSHA256 string
	InitrdAgent  string
	ImportedAt   time.Time
	UsedBy       []string // joined, not written
}

// InsertImage adds a record; ErrExists when the name is taken.
func (s *Store) InsertImage(ctx context.Context, i *Image) error {
	_, err := s.db.ExecContext(ctx, `INSERT INTO images (id, name, size, disk_bytes, files, imported_at) VALUES `+placeholders(6),
		i.ID, i.Name, i.Size, i.DiskBytes, i.Files, nanos(i.ImportedAt))
	return wrap(fmt.Sprintf("image %q", i.Name), err)
}

// DeleteImage removes the record; ErrInUse while a VM is made from it.
func (s *Store) DeleteImage(ctx context.Context, id string) error {
	r, err := s.db.ExecContext(ctx, `DELETE FROM images WHERE id=?`, id)
	return changed("image", r, err)
}

// Image finds a record by name.
func (s *Store) Image(ctx context.Context, name string) (*Image, error) {
	is, err := s.queryImages(ctx, `WHERE i.name=?`, name)
	if err == nil && len(is) == 0 {
		err = fmt.Errorf("image %q: %w", name, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return is[0], nil
}

// Images lists all images by name.
func (s *Store) Images(ctx context.Context) ([]*Image, error) {
	return s.queryImages(ctx, `WHERE 1`)
}

func (s *Store) queryImages(ctx context.Context, where string, args ...any) ([]*Image, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT i.id, i.name, i.size, i.disk_bytes, i.files, i.imported_at,
		json_group_array(v.name) FILTER (WHERE v.name IS NOT NULL)
		FROM images i LEFT JOIN vms v ON v.image_id = i.id `+where+` GROUP BY i.id ORDER BY i.name`, args...)
	if err != nil {
		return nil, fmt.Errorf("cannot read images: %w", err)
	}
	defer rows.Close()
	var is []*Image
	for rows.Next() {
		var i Image
		var at int64
		var used string
		if err := rows.Scan(&i.ID, &i.Name, &i.Size, &i.DiskBytes, &i.Files, &at, &used); err != nil {
			return nil, fmt.Errorf("cannot read image: %w", err)
		}
		i.ImportedAt = fromNanos(at)
		if err := json.Unmarshal([]byte(used), &i.UsedBy); err != nil {
			return nil, fmt.Errorf("cannot read image %q: %w", i.Name, err)
		}
		is = append(is, &i)
	}
	return is, rows.Err()
}

// InsertKernel adds a record; ErrExists when the name is taken.
func (s *Store) InsertKernel(ctx context.Context, k *Kernel) error {
	modules, err := json.Marshal(k.Modules)
	if err != nil {
		return err
	}
	_, err = s.db.ExecContext(ctx, `INSERT INTO kernels (id, name, release, size, sha256, modules, min_memory_mib,
		initrd_sha256, initrd_agent, imported_at) VALUES `+placeholders(10),
		k.ID, k.Name, k.Release, k.Size, k.SHA256, string(modules), k.MinMemoryMiB, k.InitrdSHA256, k.InitrdAgent, nanos(k.ImportedAt))
	return wrap(fmt.Sprintf("kernel %q", k.Name), err)
}

// SetInitrd records the initrd built for a kernel.
func (s *Store) SetInitrd(ctx context.Context, id, initrd, agent string) error {
	r, err := s.db.ExecContext(ctx, `UPDATE kernels SET initrd_sha256=?, initrd_agent=? WHERE id=?`, initrd, agent, id)
	return changed("kernel", r, err)
}

// DeleteKernel removes the record; ErrInUse while a VM boots it.
func (s *Store) DeleteKernel(ctx context.Context, id string) error {
	r, err := s.db.ExecContext(ctx, `DELETE FROM kernels WHERE id=?`, id)
	return changed("kernel", r, err)
}

// Kernel finds a record by name.
func (s *Store) Kernel(ctx context.Context, name string) (*Kernel, error) {
	return s.oneKernel(ctx, name, `WHERE k.name=?`)
}

// KernelByID finds a record by id.
func (s *Store) KernelByID(ctx context.Context, id string) (*Kernel, error) {
	return s.oneKernel(ctx, id, `WHERE k.id=?`)
}

func (s *Store) oneKernel(ctx context.Context, ref, where string) (*Kernel, error) {
	ks, err := s.queryKernels(ctx, where, ref)
	if err == nil && len(ks) == 0 {
		err = fmt.Errorf("kernel %q: %w", ref, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return ks[0], nil
}

// Kernels lists all kernels by name.
func (s *Store) Kernels(ctx context.Context) ([]*Kernel, error) {
	return s.queryKernels(ctx, `WHERE 1`)
}

func (s *Store) queryKernels(ctx context.Context, where string, args ...any) ([]*Kernel, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT k.id, k.name, k.release, k.size, k.sha256, k.modules, k.min_memory_mib,
		k.initrd_sha256, k.initrd_agent, k.imported_at, json_group_array(v.name) FILTER (WHERE v.name IS NOT NULL)
		FROM kernels k LEFT JOIN vms v ON v.kernel_id = k.id `+where+` GROUP BY k.id ORDER BY k.name`, args...)
	if err != nil {
		return nil, fmt.Errorf("cannot read kernels: %w", err)
	}
	defer rows.Close()
	var ks []*Kernel
	for rows.Next() {
		var k Kernel
		var at int64
		var modules, used string
		if err := rows.Scan(&k.ID, &k.Name, &k.Release, &k.Size, &k.SHA256, &modules, &k.MinMemoryMiB,
			&k.InitrdSHA256, &k.InitrdAgent, &at, &used); err != nil {
			return nil, fmt.Errorf("cannot read kernel: %w", err)
		}
		k.ImportedAt = fromNanos(at)
		for into, text := range map[*[]string]string{&k.Modules: modules, &k.UsedBy: used} {
			if err := json.Unmarshal([]byte(text), into); err != nil {
				return nil, fmt.Errorf("cannot read kernel %q: %w", k.Name, err)
			}
		}
		ks = append(ks, &k)
	}
	return ks, rows.Err()
}
