"""The lab: bufferpool on the kernels, cgroups and machines that users have, in guests of qemu. See docs/lab.md."""
