"""The released checkpoint into a local folder, and back: `convert`, `export_release`, `check_folder`."""
