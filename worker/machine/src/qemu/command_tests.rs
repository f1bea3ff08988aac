use super::*;

fn guest() -> GuestConfig {
    GuestConfig {
        name: "debian12-default-x1".to_owned(),
        accelerator: Accelerator::Tcg,
        cpu: None,
        memory: 512 * MEBIBYTE + 5,
        backing: Backing::Anonymous,
        processors: 2,
        boot: Boot::Kernel {
            kernel: "vmlinuz".into(),
            initrd: Some("initrd".into()),
            append: "root=/dev/vda console=ttyS0,115200".to_owned(),
        },
        disks: Vec::new(),
        agent: false,
        shell: false,
        networks: Vec::new(),
        firmware_entries: Vec::new(),
        display: None,
        incoming: false,
        options: Vec::new(),
    }
}

fn passed() -> Passed {
    Passed { monitor: 5, console: 6, agent: 7, shell: 8, networks: vec![9, 10] }
}

/// An option and its value in a line each.
fn text(config: &GuestConfig) -> String {
    let mut text = String::new();
    for argument in arguments(config, &passed()) {
        let argument = argument.to_str().unwrap();
        text.push(if argument.starts_with('-') { '\n' } else { ' ' });
        text.push_str(argument);
    }
    text
}

#[test]
fn a_plain_guest_has_what_every_guest_needs() {
    let expected = "
-name guest=debian12-default-x1
-nodefaults
-no-user-config
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-accel tcg
-cpu max
-display none
-machine q35,dump-guest-core=off
-m 512M
-smp cpus=2
-action reboot=shutdown,shutdown=poweroff,panic=shutdown
-chardev socket,id=monitor,fd=5
-mon chardev=monitor,mode=control
-chardev socket,id=console,fd=6
-serial chardev:console
-object rng-builtin,id=random
-device virtio-rng-pci,rng=random
-device pvpanic
-device vmgenid,guid=auto
-kernel vmlinuz
-initrd initrd
-append panic=-1 root=/dev/vda console=ttyS0,115200";
    assert_eq!(text(&guest()), expected);
}

#[test]
fn a_guest_with_everything() {
    let mut config = guest();
    config.accelerator = Accelerator::Kvm;
    config.backing = Backing::Private("/m/a,b/ram".into());
    config.boot = Boot::Uefi(Uefi { code: "/ovmf/code".into(), variables: "vars,1".into() });
    let disk = |path: &str, format, serial: Option<&str>, access| Disk {
        path: path.into(),
        format,
        serial: serial.map(str::to_owned),
        access,
    };
    config.disks = vec![
        disk("disk,1.img", Format::Qcow2, None, Access::Kept),
        disk("source", Format::Raw, Some("crewboss-source"), Access::ReadOnly),
        disk("result", Format::Raw, Some("crewboss-result"), Access::Throwaway),
    ];
    (config.agent, config.shell, config.incoming) = (true, true, true);
    let nic = |link, mac: Option<&str>| Nic { link, mac: mac.map(str::to_owned) };
    config.networks =
        vec![nic(Link::Tap, Some("52:54:00:00:00:01")), nic(Link::User, None), nic(Link::Frames, None)];
    config.firmware_entries = vec![("opt/crewboss/tftp".to_owned(), "10.0.2.2:5,6".to_owned())];
    config.display = Some("vnc".into());
    config.options = vec!["-device".to_owned(), "usb,x".to_owned()];
    let (_, variable) = {
        let text = text(&config);
        let at = text.find("\n-machine").unwrap();
        (text[..at].to_owned(), text[at..].to_owned())
    };
    let expected = "
-machine q35,dump-guest-core=off,pflash0=firmware,pflash1=variables,memory-backend=pc.ram
-m 512M
-object memory-backend-file,id=pc.ram,size=512M,share=off,mem-path=/m/a,,b/ram
-smp cpus=2
-action reboot=shutdown,shutdown=poweroff,panic=shutdown
-chardev socket,id=monitor,fd=5
-mon chardev=monitor,mode=control
-chardev socket,id=console,fd=6
-serial chardev:console
-object rng-builtin,id=random
-device virtio-rng-pci,rng=random
-device pvpanic
-device vmgenid,guid=auto
-device virtio-serial-pci,id=ports
-chardev socket,id=port1,fd=7
-device virtserialport,bus=ports.0,nr=1,chardev=port1,name=crewboss.agent
-chardev socket,id=port2,fd=8
-device virtserialport,bus=ports.0,nr=2,chardev=port2,name=crewboss.shell
-blockdev driver=qcow2,node-name=disk0,read-only=off,cache.direct=off,cache.no-flush=off,discard=unmap,file.driver=file,file.locking=on,file.read-only=off,file.cache.direct=off,file.cache.no-flush=off,file.discard=unmap,file.filename=disk,,1.img
-device virtio-blk-pci,drive=disk0,bootindex=0
-blockdev driver=raw,node-name=disk1,read-only=on,cache.direct=off,cache.no-flush=off,discard=unmap,file.driver=file,file.locking=on,file.read-only=on,file.cache.direct=off,file.cache.no-flush=off,file.discard=unmap,file.filename=source
-device virtio-blk-pci,drive=disk1,serial=crewboss-source
-blockdev driver=raw,node-name=disk2,read-only=off,cache.direct=off,cache.no-flush=on,discard=unmap,file.driver=file,file.locking=on,file.read-only=off,file.cache.direct=off,file.cache.no-flush=on,file.discard=unmap,file.filename=result
-device virtio-blk-pci,drive=disk2,serial=crewboss-result
-netdev tap,id=net0,fd=9
-device virtio-net-pci,netdev=net0,romfile=,mac=52:54:00:00:00:01
-netdev user,id=net1,ipv6=off
-device virtio-net-pci,netdev=net1,romfile=
-netdev dgram,id=net2,local.type=fd,local.str=10
-device virtio-net-pci,netdev=net2,romfile=
-fw_cfg name=opt/crewboss/tftp,string=10.0.2.2:5,,6
-device VGA
-vnc unix:vnc
-blockdev node-name=firmware,driver=raw,read-only=on,file.driver=file,file.filename=/ovmf/code
-blockdev node-name=variables,driver=raw,file.driver=file,file.filename=vars,,1
-incoming defer
-device usb,x";
    assert_eq!(variable, expected);
}

#[test]
fn file_names_that_are_no_text_stay_what_they_are() {
    let mut config = guest();
    let odd = OsString::from_vec(b"d\xff,i".to_vec());
    config.disks =
        vec![Disk { path: odd.into(), format: Format::Raw, serial: None, access: Access::Throwaway }];
    let found = arguments(&config, &passed());
    assert!(found.iter().any(|argument| argument.as_bytes().ends_with(b"file.filename=d\xff,,i")));
}

#[test]
fn the_shape_of_a_guest_says_what_it_is_and_not_where() {
    let mut config = guest();
    config.disks =
        vec![Disk { path: "a".into(), format: Format::Raw, serial: None, access: Access::Throwaway }];
    let mut elsewhere = config.clone();
    elsewhere.name = "other".to_owned();
    elsewhere.disks[0].path = "b".into();
    elsewhere.backing = Backing::Shared("ram".into());
    elsewhere.incoming = true;
    elsewhere.cpu = Some("max".to_owned());
    assert_eq!(shape(&config), shape(&elsewhere));
    let changes: [fn(&mut GuestConfig); 6] = [
        |config| config.memory *= 2,
        |config| config.processors += 1,
        |config| config.accelerator = Accelerator::Kvm,
        |config| config.disks.clear(),
        |config| config.agent = true,
        |config| config.options.push("-x".to_owned()),
    ];
    for change in changes {
        let mut other = config.clone();
        change(&mut other);
        assert_ne!(shape(&config), shape(&other));
    }
}
