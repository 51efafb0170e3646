/// Starts a multiboot 1 kernel: a 32-bit ELF file, or any file whose header gives its load addresses.
///
/// Source: Multiboot Specification version 0.6.96, sections 3.1 (header), 3.2 (machine state), 3.3 (information).
public enum Multiboot {
    private static let headerMagic: UInt32 = 0x1BAD_B002
    private static let bootMagic: UInt64 = 0x2BAD_B002
    /// The header lies within this many bytes of the file's start.
    private static let searchLimit = 8192
    /// The longest command line, in bytes.
    public static let longestCommandLine = 16_384

    private struct HeaderFlags {
        static let pageAligned: UInt32 = 1 << 0
        static let memoryInfo: UInt32 = 1 << 1
        static let video: UInt32 = 1 << 2
        static let addresses: UInt32 = 1 << 16
        /// Of the lower 16 bits, those that a loader may not ignore.
        static let required: UInt32 = 0xFFFF
    }

    public static func isMultiboot(_ image: [UInt8]) -> Bool { headerOffset(ImageReader(bytes: image)) != nil }

    private static func headerOffset(_ file: ImageReader) -> Int? {
        for offset in stride(from: 0, to: min(searchLimit, file.bytes.count) - 11, by: 4) {
            guard file.load(offset, as: UInt32.self) == headerMagic, let flags: UInt32 = file.load(offset + 4),
                let sum: UInt32 = file.load(offset + 8), headerMagic &+ flags &+ sum == 0
            else { continue }
            return offset
        }
        return nil
    }

    public static func load(_ image: [UInt8], commandLine: String, modules: [BootModule], into memory: GuestMemory)
        throws(BootError) -> BootResult {
        let file = ImageReader(bytes: image)
        guard let header = headerOffset(file), let flags: UInt32 = file.load(header + 4) else {
            throw .badImage("no multiboot header in the first \(searchLimit) bytes")
        }
        let known = HeaderFlags.pageAligned | HeaderFlags.memoryInfo | HeaderFlags.video
        guard flags & HeaderFlags.required & ~known == 0 else {
            throw .badImage("the multiboot header asks for features \(hex(flags & HeaderFlags.required & ~known)), "
                + "which don't exist")
        }
        guard commandLine.utf8.count <= longestCommandLine else {
            throw .usage("the command line has \(commandLine.utf8.count) bytes; \(longestCommandLine) is the most")
        }
        let kernel = flags & HeaderFlags.addresses != 0
            ? try loadByAddresses(file, header: header, into: memory) : try loadELF(file, into: memory)
        var place = Placement(memory: memory, taken: kernel.extents)
        let info = try writeInformation(commandLine: commandLine, modules: modules, memory: memory, place: &place)
        return BootResult(state: entryState(kernel.entry, info: info), code: kernel.code)
    }

    private struct Kernel {
        var entry: UInt32
        var extents: [Range<UInt64>]
        var code: [Range<UInt64>]
    }

    private static func loadByAddresses(_ file: ImageReader, header: Int, into memory: GuestMemory)
        throws(BootError) -> Kernel {
        guard let headerAddress: UInt32 = file.load(header + 12), let load: UInt32 = file.load(header + 16),
            let loadEnd: UInt32 = file.load(header + 20), let bssEnd: UInt32 = file.load(header + 24),
            let entry: UInt32 = file.load(header + 28)
        else { throw .badImage("the multiboot header is cut off") }
        guard headerAddress >= load, Int(headerAddress - load) <= header else {
            throw .badImage("the multiboot header's load address \(hex(load)) lies outside the file")
        }
        let start = header - Int(headerAddress - load)
        let count = loadEnd == 0 ? file.bytes.count - start : Int(loadEnd) - Int(load)
        guard count > 0, count <= file.bytes.count - start else {
            throw .badImage("the multiboot header loads \(count) bytes; the file has \(file.bytes.count - start)")
        }
        let end = max(UInt64(load) + UInt64(count), UInt64(bssEnd))
        try place(Array(file.bytes[start..<(start + count)]), at: UInt64(load), end: end, in: memory)
        let extent = UInt64(load)..<end
        return Kernel(entry: entry, extents: [extent], code: [UInt64(load)..<(UInt64(load) + UInt64(count))])
    }

    // Source: System V ABI, "ELF header" and "Program header"; Intel 386 and AMD64 supplements.
    private static func loadELF(_ file: ImageReader, into memory: GuestMemory) throws(BootError) -> Kernel {
        guard file.bytes.starts(with: [0x7F, 0x45, 0x4C, 0x46]) else {
            throw .badImage("a multiboot kernel without load addresses has to be an ELF file")
        }
        guard file.bytes.count > 52, file.bytes[5] == 1 else { throw .badImage("the ELF file isn't little-endian") }
        guard file.bytes[4] == 1 else {
            throw .badImage("a 64-bit ELF file; multiboot 1 starts 32-bit ones (objcopy -O elf32-i386)")
        }
        guard let entry: UInt32 = file.load(24), let table: UInt32 = file.load(28), let entrySize: UInt16 = file.load(42),
            let count: UInt16 = file.load(44), entrySize >= 32
        else { throw .badImage("the ELF header is damaged") }
        var kernel = Kernel(entry: entry, extents: [], code: [])
        for i in 0..<Int(count) {
            let at = Int(table) + i * Int(entrySize)
            guard let type: UInt32 = file.load(at), let offset: UInt32 = file.load(at + 4),
                let physical: UInt32 = file.load(at + 12), let fileBytes: UInt32 = file.load(at + 16),
                let memoryBytes: UInt32 = file.load(at + 20), let flags: UInt32 = file.load(at + 24)
            else { throw .badImage("ELF program header \(i) lies outside the file") }
            guard type == 1, memoryBytes > 0 else { continue }  // PT_LOAD
            guard fileBytes <= memoryBytes, let content = file.slice(UInt64(offset), UInt64(fileBytes)) else {
                throw .badImage("ELF segment \(i) lies outside the file")
            }
            let end = UInt64(physical) + UInt64(memoryBytes)
            try place(Array(content), at: UInt64(physical), end: end, in: memory)
            kernel.extents.append(UInt64(physical)..<end)
            if flags & 1 != 0 { kernel.code.append(UInt64(physical)..<(UInt64(physical) + UInt64(fileBytes))) }  // PF_X
        }
        guard !kernel.extents.isEmpty else { throw .badImage("the ELF file has nothing to load") }
        return kernel
    }

    private static func place(_ content: [UInt8], at address: UInt64, end: UInt64, in memory: GuestMemory)
        throws(BootError) {
        guard end >= address, end - address <= UInt64(Int.max),
            memory.offset(of: .init(address), count: Int(end - address)) != nil
        else {
            throw .badImage("the kernel wants memory from \(hex(address)) to \(hex(end)), where the machine has none; "
                + "give it more with --memory")
        }
        memory.write(content, at: .init(address))
    }

    /// Finds room for what the loader leaves beside the kernel.
    private struct Placement {
        let memory: GuestMemory
        var taken: [Range<UInt64>]

        /// A page-aligned run that nothing else uses; below 640 KiB first, where it is small enough.
        mutating func reserve(_ bytes: Int, preferLow: Bool) throws(BootError) -> UInt64 {
            let size = UInt64((bytes + pageSize - 1) / pageSize * pageSize)
            var candidates = taken.map { ($0.upperBound + 0xFFF) & ~0xFFF }.filter { $0 >= 1 << 20 }.sorted()
            candidates.append(1 << 20)
            if preferLow { candidates.insert(contentsOf: [0x8_0000, 0x1_0000], at: 0) }
            for start in candidates {
                let run = start..<(start + size)
                guard run.upperBound < 1 << 32, memory.offset(of: .init(start), count: Int(size)) != nil,
                    !taken.contains(where: { $0.overlaps(run) })
                else { continue }
                taken.append(run)
                return start
            }
            throw .usage("no room for \(bytes) bytes of modules and boot information beside the kernel; "
                + "give the machine more with --memory")
        }
    }

    private static func writeInformation(commandLine: String, modules: [BootModule], memory: GuestMemory,
                                         place: inout Placement) throws(BootError) -> UInt64 {
        var placed: [(start: UInt64, end: UInt64, text: String)] = []
        for module in modules {
            let start = try place.reserve(max(1, module.content.count), preferLow: false)
            memory.write(module.content, at: .init(start))
            placed.append((start, start + UInt64(module.content.count), module.commandLine))
        }
        let map = MemoryMapEntry.all(of: memory.map)
        let strings = commandLine.utf8.count + modules.reduce(0) { $0 + $1.commandLine.utf8.count + 1 } + 16
        let base = try place.reserve(128 + 16 * modules.count + 24 * map.count + strings, preferLow: true)

        var cursor = base + 128
        func put(_ bytes: [UInt8]) -> UInt32 {
            memory.write(bytes, at: .init(cursor))
            defer { cursor += UInt64(bytes.count) }
            return UInt32(truncatingIfNeeded: cursor)
        }
        let mapBytes = map.flatMap { UInt32(20).bytes + $0.bytes }
        let mapAddress = put(mapBytes)
        let moduleTexts = placed.map { put(Array($0.text.utf8) + [0]) }
        let lineAddress = put(Array(commandLine.utf8) + [0])
        let nameAddress = put(Array("vmrr".utf8) + [0])
        cursor = (cursor + 3) & ~3
        let moduleAddress = put(zip(placed, moduleTexts).flatMap {
            UInt32(truncatingIfNeeded: $0.start).bytes + UInt32(truncatingIfNeeded: $0.end).bytes + $1.bytes
                + UInt32(0).bytes
        })

        // Flags: memory, command line, modules, memory map, loader name.
        var info = [UInt32](repeating: 0, count: 29)
        info[0] = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
        info[1] = 639
        info[2] = UInt32(max(memory.map.lowEnd, 1 << 20) - 1 << 20) / 1024
        info[4] = lineAddress
        info[5] = UInt32(modules.count)
        info[6] = moduleAddress
        info[11] = UInt32(mapBytes.count)
        info[12] = mapAddress
        info[16] = nameAddress
        memory.write(info.flatMap(\.bytes), at: .init(base))
        return base
    }

    private static func entryState(_ entry: UInt32, info: UInt64) -> CPUState {
        var state = CPUState.reset()
        let flat = SegmentRegister(selector: 0x10, limit: .max, attributes: 0xC93)
        (state.ds, state.es, state.fs, state.gs, state.ss) = (flat, flat, flat, flat, flat)
        state.cs = SegmentRegister(selector: 0x08, limit: .max, attributes: 0xC9B)
        state.control.cr0 = 0x11
        state.general.rip = UInt64(entry)
        state.general.rdx = 0
        state.general.rax = bootMagic
        state.general.rbx = info
        return state
    }
}
