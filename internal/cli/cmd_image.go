package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"banger/api"
)

func (a *App) imageCommand() *cobra.Command {
	return group("image", "Root filesystems that VMs are made from",
		`An image is a root filesystem. It is never changed: each VM writes to a disk of its own on top.

The common case: banger image import NAME rootfs.tar`,
		a.imageImportCommand(), a.imageListCommand(), a.imageDeleteCommand())
}

func (a *App) imageImportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "import NAME FILE|-", Short: "Make an image of a tar archive",
		Long: "FILE is a tar of a root filesystem, plain or packed with gzip, xz or zstd; - reads stdin.",
		Example: `  banger image import bookworm rootfs.tar
  docker export CONTAINER | banger image import mine -`,
		Args: args(2, 2, "a name and a file"),
		ValidArgsFunction: func(_ *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(given) == 1 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := validImportName(args[0]); err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			in, size, err := a.open(cmd, args[1])
			if err != nil {
				return err
			}
			defer in.Close()
			file, _ := in.(*os.File)
			if size == 0 { // not a regular file
				file = nil
			}
			return a.tellImport(cmd.Context(), c, "image", importing{
				spec:  api.ImportSpec{Name: args[0], Bytes: size},
				begin: c.ImportImage,
				file:  file,
				data: func(_ context.Context, w io.Writer) error {
					_, err := io.CopyBuffer(w, struct{ io.Reader }{in}, make([]byte, copyBuffer))
					return err
				},
			})
		},
	}
	a.jsonFlag(cmd)
	return cmd
}

// open returns the file, or stdin for -, and its size if known.
func (a *App) open(cmd *cobra.Command, file string) (io.ReadCloser, int64, error) {
	if file == "-" {
		if isTerminal(a.In) {
			return nil, 0, usage(cmd, "stdin is a terminal; pipe an archive into it")
		}
		return io.NopCloser(a.In), sizeOf(a.In), nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, fmt.Errorf("cannot read the archive: %w", err)
	}
	if st, err := f.Stat(); err == nil && st.IsDir() {
		_ = f.Close()
		return nil, 0, fmt.Errorf("cannot read the archive: %s is a directory", file)
	}
	return f, sizeOf(f), nil
}

// sizeOf is the size of a regular file, 0 for anything else.
func sizeOf(r any) int64 {
	f, ok := r.(*os.File)
	if !ok {
		return 0
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return 0
	}
	return st.Size()
}

func validImportName(name string) error {
	if name == "" || strings.ContainsAny(name, "/ \t\n\x00") || strings.HasPrefix(name, "-") || strings.HasPrefix(name, ".") {
		return badName(name)
	}
	return nil
}

func (a *App) imageListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the images",
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			images, err := c.Images(cmd.Context())
			if err != nil {
				return fmt.Errorf("cannot list images: %w", err)
			}
			if a.json {
				return a.printJSON(some(images))
			}
			rows := [][]string{}
			for _, i := range images {
				rows = append(rows, []string{i.Name, bytesText(i.DiskBytes), strconv.Itoa(i.Files), age(i.ImportedAt), usedBy(i.UsedBy)})
			}
			return a.table([]string{"NAME", "ON DISK", "FILES", "IMPORTED", "USED BY"}, rows)
		},
	}
	a.jsonFlag(cmd)
	return cmd
}

// usedBy names the first few; --json has all.
func usedBy(vms []string) string {
	const most = 3
	switch {
	case len(vms) == 0:
		return "-"
	case len(vms) > most:
		return fmt.Sprintf("%s and %d more", strings.Join(vms[:most], ", "), len(vms)-most)
	}
	return strings.Join(vms, ", ")
}

func (a *App) imageDeleteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Remove images that no VM uses",
		Args:              args(1, -1, "the name of at least one image"),
		ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, names []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.deleteEach(cmd, "image", names, c.DeleteImage)
		},
	}
	a.jsonFlag(cmd)
	return cmd
}
