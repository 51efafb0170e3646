import VMCore

/// How the stack of a Linux kernel is unwound at each of its instructions: the ORC tables of its image.
///
/// Source: Linux, Documentation/arch/x86/orc-unwinder.rst; arch/x86/include/asm/orc_types.h, of version 6.1, 6.3 and 6.4.
public struct OrcTable: Sendable {
    /// What another register or the previous stack pointer is computed from.
    enum Base: UInt8 {
        case undefined = 0
        /// The stack pointer of the caller.
        case previousSP = 1
        case rdx = 2
        case rdi = 3
        case rbp = 4
        case rsp = 5
        case r10 = 6
        case r13 = 7
        /// What is stored at RBP plus the offset.
        case atRBP = 8
        /// What is stored at RSP, plus the offset.
        case atRSP = 9
    }

    /// What lies at the end of a frame.
    enum Kind {
        case undefined
        /// The stack ends here.
        case end
        /// A return address.
        case call
        /// All registers of interrupted code, as `pt_regs` has them.
        case registers
        /// What the processor pushes when it is interrupted.
        case interruptFrame
    }

    struct Entry: Equatable {
        var spOffset: Int16
        var bpOffset: Int16
        var sp: Base
        var bp: Base
        var kind: Kind
        /// Whether the frame's caller was interrupted, and its address doesn't follow a call.
        var isSignal: Bool
    }

    /// The meaning of the bits has changed with the versions.
    private enum Layout {
        /// Type in bits 8 and 9, end in bit 10.
        case linux4_14
        /// Type in bits 8 and 9, signal in bit 10, end in bit 11.
        case linux6_3
        /// Type in bits 8 to 10, signal in bit 11.
        case linux6_4
    }

    private static let entryBytes = 6

    /// Ascending, as the image was linked.
    private let addresses: [UInt64]
    private let entries: [(spOffset: Int16, bpOffset: Int16, flags: UInt16)]
    private let layout: Layout
    private let code: [Range<UInt64>]

    /// Nil where the image has no such tables, or damaged ones.
    public init?(_ kernel: ELFImage) {
        guard let places = kernel.section(".orc_unwind_ip"), let table = kernel.section(".orc_unwind") else { return nil }
        let count = places.content.count / 4
        guard count > 0, table.content.count / Self.entryBytes >= count else { return nil }
        var list: [(address: UInt64, entry: (Int16, Int16, UInt16))] = []
        list.reserveCapacity(count)
        kernel.bytes.withUnsafeBytes { bytes in
            func load<T: FixedWidthInteger>(_ offset: Int, as type: T.Type) -> T {
                T(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: T.self))
            }
            for index in 0..<count {
                // An address is given by its distance from where it is given.
                let distance = load(places.content.lowerBound + 4 * index, as: Int32.self)
                let address = places.address &+ UInt64(4 * index) &+ UInt64(bitPattern: Int64(distance))
                let at = table.content.lowerBound + Self.entryBytes * index
                list.append((address, (load(at, as: Int16.self), load(at + 2, as: Int16.self), load(at + 4, as: UInt16.self))))
            }
        }
        // Before Linux 5.6 the kernel sorted its tables as it booted. Of two entries for one place the one counts that
        // isn't merely the end of the code before it.
        if !zip(list, list.dropFirst()).allSatisfy({ $0.address <= $1.address }) {
            list.sort { ($0.address, $0.entry.2 & 0xF) < ($1.address, $1.entry.2 & 0xF) }
        }
        addresses = list.map(\.address)
        entries = list.map(\.entry)
        layout =
            kernel.section(".orc_header") != nil
            ? .linux6_4 : entries.contains { $0.flags & 0x800 != 0 } ? .linux6_3 : .linux4_14
        code = kernel.sections.filter(\.isExecutable).map {
            $0.address..<max($0.address, $0.address &+ UInt64($0.content.count))
        }
    }

    /// The entry for an instruction, by its address as the image was linked; nil outside the kernel's code.
    func entry(at address: UInt64) -> Entry? {
        guard code.contains(where: { $0.contains(address) }) else { return nil }
        let index = addresses.partitioningIndex { $0 > address } - 1
        guard index >= 0 else { return nil }
        let (spOffset, bpOffset, flags) = entries[index]
        guard let sp = Base(rawValue: UInt8(flags & 15)), let bp = Base(rawValue: UInt8(flags >> 4 & 15)),
            let (kind, isSignal) = kind(flags, sp)
        else { return nil }
        return Entry(spOffset: spOffset, bpOffset: bpOffset, sp: sp, bp: bp, kind: kind, isSignal: isSignal)
    }

    private func kind(_ flags: UInt16, _ sp: Base) -> (Kind, Bool)? {
        func bit(_ number: UInt16) -> Bool { flags >> number & 1 == 1 }
        let type: UInt16
        switch layout {
        case .linux6_4:
            let kinds: [Kind] = [.undefined, .end, .call, .registers, .interruptFrame]
            type = flags >> 8 & 7
            return type < kinds.count ? (kinds[Int(type)], bit(11)) : nil
        case .linux6_3, .linux4_14:
            type = flags >> 8 & 3
            if sp == .undefined { return (bit(layout == .linux6_3 ? 11 : 10) ? .end : .undefined, false) }
            let kinds: [Kind] = [.call, .registers, .interruptFrame]
            guard type < kinds.count else { return nil }
            return (kinds[Int(type)], layout == .linux6_3 ? bit(10) : type != 0)
        }
    }
}
