/// Replaces instructions of a Linux kernel before it is loaded, so that the monitor answers them: reads of the timestamp
/// counter, and CPUID.
///
/// Code is found as the kernel's own tables name it: functions by their symbols, and the pieces that the kernel puts in
/// their place when it boots by its table of alternatives. Each is decoded from its first instruction on.
public enum LinuxTraps {
    public struct Trapped: Sendable {
        /// The kernel as an ELF file. A bzImage unpacks itself, so it can't be started with a changed kernel.
        public var kernel: [UInt8]
        /// Where the kernel has them when it is loaded.
        public var sites: [InstructionSites.Site]
    }

    /// The vDSO reads the counter in user mode, where a port read faults. Without it, programs ask the kernel.
    public static let commandLine = "vdso=0"

    /// A bzImage or an ELF file with its symbols in it. The kernel that comes of it doesn't move when it boots.
    public static func set(_ wanted: TrappedInstructions, in file: [UInt8]) throws(BootError) -> Trapped {
        let kernel = try ELFImage(LinuxPayload.kernel(in: file))
        let symbols: KernelSymbols
        do { symbols = try KernelSymbols(kernel) } catch {
            throw .badImage("its code is found by its symbols: \(error)")
        }
        var offsets: [Int: InstructionSites.Instruction] = [:]
        for range in functions(of: kernel, symbols) + (try alternatives(of: kernel)) where mayHold(kernel.bytes, range) {
            InstructionSites.sweep(kernel.bytes, range, as64Bit: true) { offsets[$0] = $1 }
        }
        var bytes = kernel.bytes
        var sites: [InstructionSites.Site] = []
        for (offset, instruction) in offsets where wanted.contains(instruction.kind) {
            guard let segment = kernel.segments.first(where: { ($0.offset..<($0.offset + $0.fileBytes)).contains(offset) })
            else { continue }
            bytes.replaceSubrange(offset..<(offset + Int(instruction.length)), with: instruction.replacement)
            sites.append(.init(address: segment.physical + UInt64(offset - segment.offset), instruction: instruction))
        }
        return Trapped(kernel: bytes, sites: sites.sorted { $0.address.rawValue < $1.address.rawValue })
    }

    /// Functions, by where they lie in the file: each reaches to the next symbol or to the end of its section.
    private static func functions(of kernel: ELFImage, _ symbols: KernelSymbols) -> [Range<Int>] {
        var ranges: [Range<Int>] = []
        for section in kernel.sections where section.isExecutable && section.name != alternativeCode {
            let end = section.address &+ UInt64(section.content.count)
            guard !section.content.isEmpty, end > section.address else { continue }
            var starts = [section.address]
            for symbol in symbols.symbols where symbol.address > starts[starts.count - 1] && symbol.address < end {
                if symbol.isCode { starts.append(symbol.address) }
            }
            for (start, next) in zip(starts, starts.dropFirst() + [end]) {
                let offset = section.content.lowerBound + Int(start - section.address)
                ranges.append(offset..<(offset + Int(next - start)))
            }
        }
        return ranges
    }

    /// Whether the bytes of an instruction that can be replaced are among these at all: to decode 15 MiB of code takes a second.
    private static func mayHold(_ bytes: [UInt8], _ range: Range<Int>) -> Bool {
        bytes.withUnsafeBytes { bytes in
            range.dropLast().contains { bytes[$0] == 0x0F && InstructionSites.Instruction.mayBegin(with: bytes[$0 + 1]) }
        }
    }

    // MARK: Alternatives

    private static let alternativeTable = ".altinstructions"
    private static let alternativeCode = ".altinstr_replacement"

    /// The code that may replace some of the kernel's own. An entry says where each lies by the distance from where it says
    /// so, and how long it is; how long an entry itself is depends on the version.
    ///
    /// Source: Linux, arch/x86/include/asm/alternative.h, `struct alt_instr` of versions 4.17 to 6.12.
    private static func alternatives(of kernel: ELFImage) throws(BootError) -> [Range<Int>] {
        guard let table = kernel.section(alternativeTable), let code = kernel.section(alternativeCode),
            !table.content.isEmpty
        else { return [] }
        // Bytes of an entry, and where in it the length of the replacement stands.
        for (size, length) in [(12, 11), (13, 11), (14, 13)] where table.content.count % size == 0 {
            var ranges: [Range<Int>] = []
            for at in stride(from: table.content.lowerBound, to: table.content.upperBound, by: size) {
                let reader = ImageReader(bytes: Array(kernel.bytes[at..<(at + size)]))
                guard let distance = reader.load(4, as: Int32.self), let count = reader.load(length, as: UInt8.self) else { break }
                let place = table.address &+ UInt64(at - table.content.lowerBound + 4) &+ UInt64(bitPattern: Int64(distance))
                guard place >= code.address, place - code.address <= UInt64(code.content.count),
                    UInt64(count) <= UInt64(code.content.count) - (place - code.address)
                else { break }
                let offset = code.content.lowerBound + Int(place - code.address)
                ranges.append(offset..<(offset + Int(count)))
            }
            // Of the layouts that a table can have, with one all of it makes sense.
            if ranges.count == table.content.count / size { return ranges }
        }
        throw .badImage("its table of alternatives has an unknown form")
    }
}
