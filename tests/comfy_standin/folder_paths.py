"""Folders under one base directory that tests set."""

import os

base = ""
models_dir = ""
folder_names_and_paths = {}


def reset(path):
    global base, models_dir
    base, models_dir = str(path), os.path.join(path, "models")
    folder_names_and_paths.clear()
    for kind in ("diffusion_models", "vae", "text_encoders", "checkpoints", "loras"):
        folder_names_and_paths[kind] = ([os.path.join(models_dir, kind)], {".safetensors", ".pth"})


def add_model_folder_path(name, path, is_default=False):
    folder_names_and_paths.setdefault(name, ([], set()))[0].append(path)


def get_folder_paths(name):
    return folder_names_and_paths[name][0][:]


def get_filename_list(name):
    roots, endings = folder_names_and_paths[name]
    found = []
    for root in roots:
        for folder, _, files in os.walk(root):
            found += [
                os.path.relpath(os.path.join(folder, f), root) for f in files if os.path.splitext(f)[1] in endings
            ]
    return sorted(found)


def get_temp_directory():
    return os.path.join(base, "temp")


def get_input_directory():
    return os.path.join(base, "input")


def get_output_directory():
    return os.path.join(base, "output")


def get_save_image_path(prefix, folder, width=0, height=0):
    subfolder, name = os.path.split(prefix)
    folder = os.path.join(folder, subfolder)
    os.makedirs(folder, exist_ok=True)
    taken = [found for found in os.listdir(folder) if found.startswith(f"{name}_")]
    return folder, name, 1 + len(taken), subfolder, prefix
