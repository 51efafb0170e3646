/// Starts a flat image in real mode at the address where it is loaded.
///
/// Below 64 KiB the image runs with CS = 0, so that 0x7C00 is what a boot sector expects; below 1 MiB with CS:IP
/// made from the address; above, with the CS base set to the address, as after a reset.
public enum FlatBoot {
    public static func load(_ image: [UInt8], at address: GuestPhysicalAddress, into memory: GuestMemory)
        throws(BootError) -> BootResult {
        guard !image.isEmpty else { throw .badImage("the image is empty") }
        guard memory.write(image, at: address) else {
            throw .usage(
                "\(image.count) bytes at \(hex(address.rawValue)) don't fit into the machine's memory: RAM is "
                    + memory.map.regions.map { "\(hex($0.address.rawValue))–\(hex($0.end.rawValue - 1))" }
                    .joined(separator: ", "))
        }
        var state = CPUState.reset()
        let linear = address.rawValue
        state.cs = SegmentRegister(limit: 0xFFFF, attributes: 0x9B)
        if linear <= 0xFFFF {
            state.general.rip = linear
        } else if linear < 1 << 20 {
            state.cs.selector = UInt16(linear >> 4)
            state.cs.base = linear & ~0xF
            state.general.rip = linear & 0xF
        } else {
            state.cs.selector = 0xF000
            state.cs.base = linear
            state.general.rip = 0
        }
        // The stack grows down from the image, or from the top of the first 64 KiB when there is no room below it.
        state.general.rsp = (0x1000...0xFFFF).contains(linear) ? linear & ~1 : 0xFFFE
        state.general.rdx = 0x80  // the boot drive, as a BIOS passes it
        return BootResult(state: state, code: [linear..<linear + UInt64(image.count)])
    }
}

/// A number as people write addresses.
public func hex<T: BinaryInteger>(_ value: T) -> String { "0x" + String(value, radix: 16) }
