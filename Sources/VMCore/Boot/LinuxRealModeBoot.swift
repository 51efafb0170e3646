import Guests

/// Starts a Linux kernel by the 16-bit boot protocol: its own real-mode part runs first and asks a BIOS about the machine.
///
/// Source: Linux, Documentation/arch/x86/boot.rst, "Memory Layout", "Loading The Rest of The Kernel" and "Running the
/// Kernel", whose sample layout this is.
enum LinuxRealModeBoot {
    private enum Place {
        /// Where the real-mode part lies, with its heap, its stack and the command line: a segment of its own.
        static let segment: UInt16 = 0x1000
        /// Offsets in it.
        static let heapEnd: UInt16 = 0xE000
        static let end: UInt32 = 0x1_0000
        /// What the stack takes of the heap's end.
        static let stack: UInt16 = 0x200
        static let bios: UInt16 = 0xF800
    }

    /// Fields of the BIOS data area (IBM PC/AT Technical Reference).
    private enum DataArea {
        static let extendedSegment: UInt64 = 0x40E
        static let baseMemory: UInt64 = 0x413
    }

    /// Bytes for the command line and its final zero.
    static let commandLineLimit = Int(Place.end) - Int(Place.heapEnd)

    /// Puts the real-mode part of `image` and the BIOS into memory. The rest is there already.
    static func start(_ image: LinuxImage, commandLine: [UInt8], initrd: Range<UInt64>, in memory: GuestMemory)
        -> BootResult {
        let base = UInt64(Place.segment) << 4
        func put<T: FixedWidthInteger>(_ value: T, _ offset: Int) {
            memory.write(value.bytes, at: .init(base + UInt64(offset)))
        }
        memory.write(Array(image.setup.prefix(Int(Place.heapEnd - Place.stack))), at: .init(base))
        put(LinuxImage.unknownLoader, LinuxImage.Offset.loaderType)
        put(image.loadFlags | LinuxImage.LoadFlags.canUseHeap, LinuxImage.Offset.loadFlags)
        put(Place.heapEnd - Place.stack, LinuxImage.Offset.heapEnd)
        put(UInt32(image.address), LinuxImage.Offset.code32Start)
        put(UInt32(truncatingIfNeeded: initrd.lowerBound), LinuxImage.Offset.initrdAddress)
        put(UInt32(truncatingIfNeeded: initrd.count), LinuxImage.Offset.initrdSize)
        put(UInt32(base) + UInt32(Place.heapEnd), LinuxImage.Offset.commandLineAddress)
        memory.write(commandLine + [0], at: .init(base + UInt64(Place.heapEnd)))
        writeBIOS(into: memory)
        return BootResult(state: entryState(), code: [])
    }

    /// Offsets of what a loader fills in; Sources/Guests/bios.S has them.
    private enum BIOS {
        static let mapCount = 0
        static let below16MiB = 2
        static let above16MiB = 4
        static let extended = 6
        static let map = 8
        static let mapLimit = 32
        static let vectors = map + mapLimit * 20
        /// In place of a vector: the handler of all that have none.
        static let otherVectors: UInt16 = 0xFFFF
    }

    private static func writeBIOS(into memory: GuestMemory) {
        let image = guest_bios()
        var bytes = [UInt8](UnsafeBufferPointer(start: image.start, count: image.end - image.start))
        func put(_ new: [UInt8], _ offset: Int) { bytes.replaceSubrange(offset..<(offset + new.count), with: new) }
        let map = MemoryMapEntry.all(of: memory.map).prefix(BIOS.mapLimit)
        let extended = max(memory.map.lowEnd, 1 << 20) - 1 << 20
        put(UInt16(map.count).bytes, BIOS.mapCount)
        put(UInt16(min(extended, 15 << 20) >> 10).bytes, BIOS.below16MiB)
        put(UInt16(clamping: extended > 15 << 20 ? (extended - 15 << 20) >> 16 : 0).bytes, BIOS.above16MiB)
        put(UInt16(clamping: extended >> 10).bytes, BIOS.extended)
        put(map.flatMap(\.bytes), BIOS.map)
        memory.write(bytes, at: .init(UInt64(Place.bios) << 4))

        let table = ImageReader(bytes: bytes)
        var handlers: [UInt16: UInt16] = [:]
        for entry in stride(from: BIOS.vectors, to: bytes.count, by: 4) {
            guard let vector: UInt16 = table.load(entry), let handler: UInt16 = table.load(entry + 2) else { break }
            handlers[vector] = handler
            if vector == BIOS.otherVectors { break }
        }
        let other = handlers[BIOS.otherVectors] ?? 0
        let vectors = (0..<256 as Range<UInt16>).flatMap { (handlers[$0] ?? other).bytes + Place.bios.bytes }
        memory.write(vectors, at: .init(0))
        memory.write(UInt16(MemoryMapEntry.baseMemoryEnd >> 4).bytes, at: .init(DataArea.extendedSegment))
        memory.write(UInt16(MemoryMapEntry.baseMemoryEnd >> 10).bytes, at: .init(DataArea.baseMemory))
    }

    private static func entryState() -> CPUState {
        var state = CPUState.reset()
        func segment(_ selector: UInt16, _ attributes: UInt16) -> SegmentRegister {
            SegmentRegister(selector: selector, base: UInt64(selector) << 4, limit: 0xFFFF, attributes: attributes)
        }
        let data = segment(Place.segment, 0x93)
        (state.ds, state.es, state.fs, state.gs, state.ss) = (data, data, data, data, data)
        state.cs = segment(Place.segment + 0x20, 0x9B)
        state.general.rip = 0
        state.general.rsp = UInt64(Place.heapEnd)
        return state
    }
}
