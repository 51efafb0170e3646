/// What kind of kernel a file is, by what its first bytes say.
public enum KernelFormat: Sendable {
    case multiboot
    /// A Linux bzImage.
    case linux

    /// - Throws: `BootError` for a file that is none of them.
    public init(of image: [UInt8]) throws(BootError) {
        if LinuxImage.isLinux(ImageReader(bytes: image)) {
            self = .linux
        } else if Multiboot.isMultiboot(image) {
            self = .multiboot
        } else {
            throw .badImage("neither a Linux bzImage nor a multiboot kernel: it has no setup header and no multiboot header")
        }
    }
}
