# shellcheck shell=bash disable=SC2154
# A disk that firmware starts from, BIOS and UEFI alike, for scripts/make-machine to source, after
# packages.sh:
#
#   sector 0          GRUB's boot sector, with a partition table
#   sector 1          the rest of GRUB for BIOS, which the boot sector reads from there
#   1 MiB             partition 1: FAT with EFI/BOOT/BOOTX64.EFI, GRUB for UEFI; firmware looks for
#                     that name by itself
#   ROOT_AT           partition 2: the root file system, with kernel and initrd in /boot
#
# GRUB reads its commands from inside of itself and asks nobody. It talks to the serial console, so
# that what it cannot do shows up there, and switches the guest off then. GRUB and the tools are
# unpacked from Debian's packages and run with their own C library: nothing is installed.

SECTOR=512
MIB=1048576
ESP_AT=1                  # MiB
ROOT_AT=8                 # MiB
LOADER=                   # where the packages are unpacked

# Fetches what it takes; the packages are listed in $scratch/loader.packages.
firmware_fetch() { packages_fetch grub-pc-bin grub-efi-amd64-bin mtools >"$scratch/loader.packages"; }

# A program of the packages.
loader() { # loader PROGRAM ARGUMENT...
    local library=$LOADER/lib/x86_64-linux-gnu program=$LOADER/usr/bin/$1
    shift
    "$library/ld-linux-x86-64.so.2" --library-path "$library:$LOADER/usr/lib/x86_64-linux-gnu" "$program" "$@" ||
        die "cannot make a boot loader: ${program##*/} failed"
}

# Everything of the disk but the root file system, in a file that is as long as the whole.
firmware_disk() { # firmware_disk FILE ROOT-MIB ROOT-UUID KERNEL-COMMAND-LINE
    local root_mib=$2
    [ $((ROOT_AT + root_mib)) -le $((4294967295 / (MIB / SECTOR))) ] || die "a disk that firmware starts from has at most 2 TiB"
    LOADER=$scratch/loader
    mkdir "$LOADER"
    packages_unpack "$LOADER" --exclude=./usr/share --exclude=./usr/sbin <"$scratch/loader.packages"
    cat >"$scratch/grub.cfg" <<CFG
set gfxpayload=text
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
search.fs_uuid $3 root
linux /boot/vmlinuz root=/dev/vda2 $4
initrd /boot/initrd
boot
halt
CFG
    truncate -s $(((ROOT_AT + root_mib) * MIB)) "$1"
    write_bios_loader "$1"
    write_uefi_loader "$1"
    {
        partition ef $((ESP_AT * MIB / SECTOR)) $(((ROOT_AT - ESP_AT) * MIB / SECTOR))
        partition 83 $((ROOT_AT * MIB / SECTOR)) $((root_mib * MIB / SECTOR))
    } | at_byte "$1" 446
}

# What a loader can do: `normal` and its menus are left out.
modules="part_msdos ext2 linux serial terminal search_fs_uuid halt"

write_bios_loader() { # write_bios_loader FILE
    local of=$LOADER/usr/lib/grub/i386-pc
    loader grub-mkimage -d "$of" -O i386-pc -p / -c "$scratch/grub.cfg" -o "$scratch/core.img" biosdisk $modules
    [ "$(stat -c %s "$scratch/core.img")" -le $((ESP_AT * MIB - SECTOR)) ] || die "GRUB does not fit before the first partition"
    # Up to where the partition table begins with the number of the disk: what follows there is for
    # floppy disks.
    head -c 440 "$of/boot.img" | at_byte "$1" 0
    printf '\x55\xaa' | at_byte "$1" 510
    at_byte "$1" $SECTOR <"$scratch/core.img"
}

write_uefi_loader() { # write_uefi_loader FILE
    local esp=$scratch/esp.img
    loader grub-mkimage -d "$LOADER/usr/lib/grub/x86_64-efi" -O x86_64-efi -p / -c "$scratch/grub.cfg" \
        -o "$scratch/BOOTX64.EFI" $modules
    touch -d @315532800 "$scratch/BOOTX64.EFI"
    truncate -s $(((ROOT_AT - ESP_AT) * MIB)) "$esp"
    # The first time that FAT knows.
    export SOURCE_DATE_EPOCH=315532800
    loader mformat -i "$esp" -N 63726577 -v BOOT ::
    loader mmd -i "$esp" ::/EFI ::/EFI/BOOT
    loader mcopy -m -i "$esp" "$scratch/BOOTX64.EFI" ::/EFI/BOOT/
    at_byte "$1" $((ESP_AT * MIB)) <"$esp"
}

at_byte() { # at_byte FILE OFFSET: from standard input
    dd of="$1" bs=64K seek="$2" oflag=seek_bytes conv=notrunc,sparse status=none || die "cannot write $1"
}

# An entry of a partition table. Cylinders and heads are those that mean: look at the sectors
# instead.
partition() { # partition TYPE START LENGTH: in hexadecimal; in sectors
    local number
    printf '%b' "\\x00\\xfe\\xff\\xff\\x$1\\xfe\\xff\\xff"
    shift
    for number; do
        printf '%b' "$(printf '\\x%02x\\x%02x\\x%02x\\x%02x' $((number & 255)) $((number >> 8 & 255)) \
            $((number >> 16 & 255)) $((number >> 24 & 255)))"
    done
}
