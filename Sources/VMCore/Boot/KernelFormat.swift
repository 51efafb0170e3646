/// What kind of kernel a file is, by what its first bytes say.
public enum KernelFormat: Sendable {
    case multiboot
    /// A Linux bzImage.
    case linux
    /// An ELF file with a PVH note: a vmlinux.
    case pvh

    /// - Throws: `BootError` for a file that is none of them.
    public init(of image: [UInt8]) throws(BootError) {
        let file = ImageReader(bytes: image)
        if LinuxImage.isLinux(file) {
            self = .linux
        } else if Multiboot.isMultiboot(image) {
            self = .multiboot
        } else if ELFImage.isELF64(file) {
            self = .pvh
        } else {
            throw .badImage("not a kernel that can be started: a Linux bzImage, a 64-bit ELF file with a PVH note, or a "
                + "multiboot kernel")
        }
    }
}
